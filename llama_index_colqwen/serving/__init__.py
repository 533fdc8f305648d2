"""The model as a service: a Hugging Face custom handler, and one to host oneself, of the same contract."""

from llama_index_colqwen.serving.handler import EndpointHandler

__all__ = ["EndpointHandler"]
