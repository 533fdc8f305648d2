"""`python -m llama_index_colqwen.cli`: the same as `colqwen`."""

from llama_index_colqwen.cli import app

if __name__ == "__main__":
    app()
