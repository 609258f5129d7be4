"""Models from elsewhere as Hugging Face folders, the one form that the C++ core reads."""

from outrider.model_import.gguf_import import import_gguf
from outrider.model_import.smollm2 import cache_folder, cached_smollm2, fetch_smollm2

__all__ = ["cache_folder", "cached_smollm2", "fetch_smollm2", "import_gguf"]
