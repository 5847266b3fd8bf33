"""Run an ONNX file with whatever ONNX Runtime is installed: ``infer.py FILE IMAGES.npy LOGITS.npy``."""

import sys

import numpy as np
import onnxruntime

file, images, logits = sys.argv[1:]
options = onnxruntime.SessionOptions()
options.add_session_config_entry("session.x64quantprecision", "1")
session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
np.save(logits, session.run(None, {session.get_inputs()[0].name: np.load(images)})[0])
