"""The architectures this engine serves, one small entry each."""

from __future__ import annotations

from workers.engine.model.families.family import DenseMLPNames, Family, LayerNorms, LayerType, SparseMLPNames
from workers.engine.model.families.gemma import GEMMA, GEMMA2, GEMMA3
from workers.engine.model.families.glm import GLM, GLM4
from workers.engine.model.families.gpt_oss import GPT_OSS
from workers.engine.model.families.granite import GRANITE
from workers.engine.model.families.llama import LLAMA
from workers.engine.model.families.mistral import MISTRAL
from workers.engine.model.families.mixtral import MIXTRAL
from workers.engine.model.families.olmo import OLMO2, OLMO3
from workers.engine.model.families.phi3 import PHI3
from workers.engine.model.families.qwen2 import QWEN2
from workers.engine.model.families.qwen3 import QWEN3
from workers.engine.model.families.qwen3_moe import QWEN3_MOE
from workers.engine.model.families.smollm3 import SMOLLM3

_ALL = (
    *(LLAMA, MISTRAL, MIXTRAL, QWEN2, QWEN3, QWEN3_MOE, GEMMA, GEMMA2, GEMMA3),
    *(PHI3, GRANITE, SMOLLM3, OLMO2, OLMO3, GLM, GLM4, GPT_OSS),
)
FAMILIES = {family.architecture: family for family in _ALL}

__all__ = ["FAMILIES", "DenseMLPNames", "Family", "LayerNorms", "LayerType", "SparseMLPNames"]
