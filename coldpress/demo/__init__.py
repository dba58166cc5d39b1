"""The embedded demo model: a small trained Llama, its questions, its text, how it was made."""

from pathlib import Path

HERE = Path(__file__).resolve().parent
MODEL_DIR = HERE / "model"
QUESTIONS_DIR = HERE / "knowledge" / "questions"
TRAIN_TEXT = HERE / "text" / "train.txt"
CALIBRATION_TEXT = HERE / "text" / "calibration.txt"
HELDOUT_TEXT = HERE / "text" / "heldout.txt"

__all__ = ["CALIBRATION_TEXT", "HELDOUT_TEXT", "MODEL_DIR", "QUESTIONS_DIR", "TRAIN_TEXT"]
