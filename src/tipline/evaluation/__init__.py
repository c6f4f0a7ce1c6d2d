"""Pure statistics over counts and losses: no files, no MLflow, no dask."""
