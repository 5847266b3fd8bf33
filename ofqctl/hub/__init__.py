"""Runs on the Hugging Face hub: what is sent (``contents``), its ``card``, ``pushing`` and ``pulling``.

Nothing is imported here: whoever reads a run needs ``pulling`` alone, and not what writes ONNX files.
"""
