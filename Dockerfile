# docker build -t colqwen . : the commands of this package, with what a model needs; `colqwen serve` if it is given no other.
FROM python:3.12-slim
COPY pyproject.toml README.md LICENSE /src/
COPY llama_index_colqwen /src/llama_index_colqwen
RUN pip install --no-cache-dir "/src[server]" \
    && useradd --create-home --uid 1000 colqwen \
    && install -d -o colqwen /data
USER 1000
WORKDIR /data
ENV HF_HOME=/data/models
EXPOSE 8000
HEALTHCHECK --start-period=10m \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=5)"]
ENTRYPOINT ["colqwen"]
CMD ["serve", "--host", "0.0.0.0"]
