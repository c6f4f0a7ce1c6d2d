"""Format numbers: raise one when the same input gives other output, and DVC and the manifests make it again.

`download`, `prepare` and `score` depend on this file in dvc.yaml instead of on the modules that they import.
"""

DOWNLOAD = 1  # data/raw: the published files and their manifests
PREPARED = 4  # data/trips: prepared months and their manifests
PREDICTIONS = 6  # data/predictions: parts and manifests
COUNTS = 2  # of scored rows, in the manifests of predictions and in data/counts
