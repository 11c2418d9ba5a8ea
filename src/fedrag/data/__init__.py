"""Documents and examples from files, HuggingFace datasets and plain rows: checked, chunked, split.

Readers take what is written or raise `DataError`, which names the file and the row, says what was found there and
what was wanted. Nothing is dropped in silence.

>>> documents = documents_from([{"id": "seine", "text": "Paris lies on the Seine.", "language": "en"}])
>>> documents[0].id, dict(documents[0].metadata)
('seine', {'language': 'en'})
>>> examples_from([{"question": "Which river runs through Paris?", "answer": "the Seine"}])[0].answers
('the Seine',)
"""

from fedrag.data.chunking import chunk
from fedrag.data.documents import documents_from, read_documents, stream_documents
from fedrag.data.examples import examples_from, read_examples
from fedrag.data.splits import Overlap, overlap, split

__all__ = [
    "Overlap",
    "chunk",
    "documents_from",
    "examples_from",
    "overlap",
    "read_documents",
    "read_examples",
    "split",
    "stream_documents",
]
