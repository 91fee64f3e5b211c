"""Where do tokens lie in the plane? Prompt and answer token by token, steered and unsteered."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
