"""What the bytes of a run are used for."""

from ofqctl.results.document import Part


class Ledger(Part):
    """Sizes in bytes.

    Attributes:
        codes: Packed codes of all quantized weights.
        steps: Grid steps, zero points and tables of points, of weights and activations.
        float_leftovers: Everything else: biases, norms, embeddings, learned shifts, layers left in float.
        ideal: Codes at exactly their bit-width, plus ``steps`` and ``float_leftovers``.
        total: Size of the file, header included.
        float_model: Size of the float model's weights in bytes.
    """

    codes: int
    steps: int
    float_leftovers: int
    ideal: int
    total: int
    float_model: int


class LedgerWithRatio(Ledger):
    """The same, and how many times the float model's weights are as large as the file."""

    ratio: float
