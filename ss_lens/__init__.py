"""Selective Steering (arXiv 2601.19375) on TransformerLens.

Names are loaded on first use, so that ``import ss_lens`` needs neither torch nor transformers.
``__init__.pyi`` lists them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
