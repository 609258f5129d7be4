"""What is not run, or not compared by value, each with its reason; never more than 5 % of a database is skipped."""

# Their result is memory that nobody has written: layout is compared, values are not.
UNINITIALISED = frozenset(
    {
        "empty",
        "empty_like",
        "empty_permuted",
        "empty_strided",
        "new_empty",
        "new_empty_strided",
        "resize_",
        "resize_as_",
    }
)


def is_indeterminate(entry, sample):
    """True where two eager runs may differ: unwritten memory, and LAPACK's gelsy, which starts from such pivots."""
    return entry in UNINITIALISED or (entry.startswith("linalg.lstsq") and sample.kwargs.get("driver") == "gelsy")


_JITERATOR = "the jiterator compiles CUDA kernels only: eager raises on a CPU"

OPERATOR_SKIPS = {
    "jiterator_unary": _JITERATOR,
    "jiterator_binary": _JITERATOR,
    "jiterator_binary_return_by_ref": _JITERATOR,
    "jiterator_2inputs_2outputs": _JITERATOR,
    "jiterator_4inputs_with_extra_args": _JITERATOR,
}

_SAMPLES_DTYPE = "torch's sample passes float64 random samples to a float32 module: eager raises"

MODULE_SKIPS = {"nn.FractionalMaxPool2d": _SAMPLES_DTYPE, "nn.FractionalMaxPool3d": _SAMPLES_DTYPE}

OPTIMIZER_SKIPS = {}
