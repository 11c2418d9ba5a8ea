"""The quickstart: real text for the retriever, an invented world and a tiny shipped base for the whole loop."""
