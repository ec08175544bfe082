"""The science of Bitfront: quantisers, supernet, costs, attribution, search and finetune.

Knows nothing of YAML, Ray, MLflow or Optuna. The way in is `trainables.api`.
"""
