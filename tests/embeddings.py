"""A sentence-transformers model under LlamaIndex's interface, for the tests."""

from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import PrivateAttr
from sentence_transformers import SentenceTransformer


class OwnEmbedding(BaseEmbedding):
    """As LlamaIndex's package for Hugging Face writes it: the documents' prompt is called "text"."""

    _model: Any = PrivateAttr()

    def __init__(self, model: SentenceTransformer) -> None:
        super().__init__(model_name="own")
        self._model = model

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._model.encode(query).tolist()

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._model.encode(texts, prompt=self._model.prompts.get("text")).tolist()
