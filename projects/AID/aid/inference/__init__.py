"""Inference with a trained detector, without its datasets and teachers."""

from .classes import classes_of
from .predictor import Predictor, as_input, load_config_of, load_detector

__all__ = ["Predictor", "as_input", "classes_of", "load_config_of", "load_detector"]
