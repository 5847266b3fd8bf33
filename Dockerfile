# ofqctl on a CPU: docker build -t ofqctl . && docker run --rm -v "$PWD:/work" ofqctl --help
FROM python:3.12-slim AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY ofqctl ofqctl
COPY recipes recipes
COPY docs/schemas docs/schemas
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim
COPY --from=wheel /wheels /wheels
# Torch without CUDA is a tenth of the size.
RUN pip install --no-cache-dir torch torchvision --index-url https://download.pytorch.org/whl/cpu \
    && pip install --no-cache-dir /wheels/*.whl \
    && rm -r /wheels \
    && useradd --create-home --uid 1000 user
USER user
WORKDIR /work
ENV HF_HOME=/home/user/.cache/huggingface
ENTRYPOINT ["ofqctl"]
CMD ["--help"]
