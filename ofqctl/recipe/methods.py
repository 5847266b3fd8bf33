"""The kinds of methods that a recipe can name, each with the registry of what there is."""

from typing import Any

from ofqctl.registry import Registry

QUANTIZERS: Registry[Any] = Registry("quantizer", "ofqctl.quantizers")
"""Classes derived from :class:`ofqctl.quantizers.Quantizer`, for ``weights`` and ``activations``.

Traits: none. Roles: ``weights``, ``activations``.
"""

PTQ_STAGES: Registry[Any] = Registry("stage of post-training quantization", "ofqctl.ptq")
"""Functions of a :class:`ofqctl.ptq.Task` and their settings.

Traits: ``prepares``: works on the float model, ahead of conversion and calibration.
"""

TERMS: Registry[Any] = Registry("term of the objective", "ofqctl.distill")
"""Classes derived from :class:`ofqctl.distill.Term`, of which training minimizes the sum.

Traits: ``needs_teacher``: learns from a teacher, which ``distillation`` names.
"""

REMEDIES: Registry[Any] = Registry("remedy", "ofqctl.oscillation")
"""Classes derived from :class:`ofqctl.oscillation.Remedy`, made at the start of each phase that names them.

Traits: ``holds_codes``: decides which codes may change, so that no other one can, and weights cannot be averaged.
"""
