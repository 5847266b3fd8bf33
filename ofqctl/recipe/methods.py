"""The registries of methods that a recipe can name."""

from typing import Any

from ofqctl.registry import Registry

QUANTIZERS: Registry[Any] = Registry("quantizer", "ofqctl.quantizers")
"""Classes derived from :class:`ofqctl.quantizers.Quantizer`, for ``weights`` and ``activations``.

Traits: ``one_step``: has one grid step for a whole tensor. Roles: ``weights``, ``activations``.
"""

PTQ_STAGES: Registry[Any] = Registry("stage of post-training quantization", "ofqctl.ptq")
"""Functions that take a :class:`ofqctl.ptq.Task` and their settings.

Traits: ``prepares``: works on the float model, before conversion and calibration, and may change the plan.
"""

TERMS: Registry[Any] = Registry("term of the objective", "ofqctl.distill")
"""Classes derived from :class:`ofqctl.distill.Term`, whose sum training minimizes.

Traits: ``needs_teacher``: needs a teacher, which ``distillation`` names.
"""

REMEDIES: Registry[Any] = Registry("remedy", "ofqctl.remedies")
"""Classes derived from :class:`ofqctl.remedies.Remedy`, created at the start of each phase that names them.

Traits: ``holds_codes``: decides which codes may change, so a phase can have only one such remedy, and weights cannot be
averaged. ``float32``: does not work with autocast. ``quantized_weights``: needs a phase that quantizes weights.
"""
