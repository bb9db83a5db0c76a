"""maskgen: masked generative image and video models.

Importing the package is light; the public names below load their modules when first used.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Public name -> module. ModelMixin and SchedulerMixin must be names of this package:
# diffusers loads a third-party component only if its module holds the name of the component's base class.
_PUBLIC = {
    "MaskedImagePipeline": "maskgen.pipelines.image",
    "MaskedVideoPipeline": "maskgen.pipelines.video",
    "MaskScheduler": "maskgen.decoding.scheduler",
    "MaskTransformer": "maskgen.transformer.model",
    "Tokenizer": "maskgen.tokenizer.model",
    "ModelMixin": "diffusers",
    "SchedulerMixin": "diffusers",
}
__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'maskgen' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
