"""`python -m llama_index_colqwen.cli`: the same as `colqwen`."""

from llama_index_colqwen.cli import main

if __name__ == "__main__":
    main()
