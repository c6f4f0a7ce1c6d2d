"""All that speaks to MLflow: where its store is, runs, the registry, who was champion when."""
