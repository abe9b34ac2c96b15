"""Retrievers of other libraries that search an index: LangChain's and LlamaIndex's."""
