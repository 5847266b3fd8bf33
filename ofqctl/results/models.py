"""The result of ``ofqctl models``."""

from typing import Literal

from ofqctl.results.document import Document, Part

Coverage = Literal["products", "layers", "none"]


class ListedModel(Part):
    """A model, its family, whether there are pretrained weights for it, and whether these have no classifier."""

    name: str
    family: str
    pretrained: bool
    backbone: bool


class Family(Part):
    """A family of models.

    Attributes:
        family: Its name, that of timm's module.
        models: Number of matching models.
        pretrained: Number of these with pretrained weights.
        backbones: Number of those whose weights have no classifier, so that they give embeddings.
        attention: What of its attention is quantized; ``meaning`` says it in words.
        qkr: Whether query and key can be merged in at least one of its attention classes.
        quantized_classes: Attention classes whose products are quantized.
        float_classes: Attention classes whose products stay in float.
    """

    family: str
    models: int
    pretrained: int
    backbones: int
    attention: Coverage
    qkr: bool
    quantized_classes: tuple[str, ...]
    float_classes: tuple[str, ...]


class ModelsResult(Document):
    """timm's models.

    Attributes:
        pattern: What names were matched with; None for all.
        families: Families of the matching models.
        models: The matching models.
        meaning: What each value of ``attention`` means.
    """

    command: Literal["models"] = "models"
    pattern: str | None
    families: tuple[Family, ...]
    models: tuple[ListedModel, ...]
    meaning: dict[Coverage, str]
