"""Models and GPUs by name: public architecture numbers and data-sheet figures."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Model:
    """A dense Llama-style transformer; sizes as in its config.json, 16-bit weights and KV cache."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied_embeddings: bool

    @property
    def layer_parameters(self) -> int:
        """Parameters that every token passes through: attention and MLP of all layers."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights, embeddings included."""
        embeddings = self.vocabulary * self.hidden * (1 if self.tied_embeddings else 2)
        return 2 * (self.layer_parameters + embeddings)

    @property
    def streamed_bytes(self) -> int:
        """Bytes of the weights that every step reads: layers and output head, but no input embeddings."""
        return 2 * (self.layer_parameters + self.vocabulary * self.hidden)

    @property
    def kv_bytes(self) -> int:
        """Bytes of KV cache a token takes."""
        return 2 * 2 * self.layers * self.kv_heads * self.head_dim


@dataclass(frozen=True, slots=True)
class GPU:
    """A GPU's data sheet: memory in bytes, dense 16-bit peak in FLOP/s, memory bandwidth in bytes/s."""

    memory: float
    flops: float
    bandwidth: float


MODELS = {
    "llama-2-7b": Model(32, 4096, 32, 32, 128, 11008, 32000, tied_embeddings=False),
    "llama-3.2-3b": Model(28, 3072, 24, 8, 128, 8192, 128256, tied_embeddings=True),
    "llama-3.1-8b": Model(32, 4096, 32, 8, 128, 14336, 128256, tied_embeddings=False),
}

GPUS = {
    "a10g": GPU(24e9, 70e12, 600e9),
    "a100-80gb": GPU(80e9, 312e12, 2.039e12),
    "h100": GPU(80e9, 989e12, 3.35e12),
    "h200": GPU(141e9, 989e12, 4.8e12),
}
