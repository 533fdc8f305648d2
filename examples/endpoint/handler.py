"""What Hugging Face Inference Endpoints look for in a model's repository: a class of this name."""

from llama_index_colqwen import EndpointHandler

__all__ = ["EndpointHandler"]
