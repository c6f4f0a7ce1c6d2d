"""All that speaks to MLflow: where its store is, runs, the registry, who was champion when.

MLflow reads its settings when it is imported, so they are made before. A person's own win.
"""

import os

for _name, _value in {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_UV_AUTO_DETECT": "false",  # or a uv.lock in the folder is copied into every model
    # A server that is down would be waited for for four minutes; and a version whose making was not answered for,
    # asked for again, is there twice.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",  # or clients need a way to the server's bucket
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # with the password, where the address has one
    "GIT_PYTHON_REFRESH": "quiet",
}.items():
    os.environ.setdefault(_name, _value)
