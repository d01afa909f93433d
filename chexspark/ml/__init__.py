"""Spark ML on chest X-rays: an Estimator, its Model, an Evaluator, and folds of patients.

from chexspark.ml import ChestXrayClassifier, ChestXrayEvaluator, ChestXrayModel, patientFolds
"""

from chexspark.ml.classifier import ChestXrayClassifier
from chexspark.ml.evaluator import ChestXrayEvaluator, patientFolds
from chexspark.ml.model import ChestXrayModel

__all__ = ["ChestXrayClassifier", "ChestXrayEvaluator", "ChestXrayModel", "patientFolds"]
