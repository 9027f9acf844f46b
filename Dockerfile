# One image for every role; the command says which: `run resolve`, `api`, `topics create`, ...

FROM python:3.12-slim AS build
WORKDIR /build
COPY . .
# All wheels are made or fetched here, so the final stage installs without network or compiler.
RUN --mount=type=cache,target=/root/.cache/pip \
    pip wheel --wheel-dir /wheels ".[faust]"

FROM python:3.12-slim
RUN useradd --system --uid 10001 --create-home segue
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir --no-index --find-links /wheels "segue[faust]"
ENV PYTHONUNBUFFERED=1
WORKDIR /home/segue
USER segue
ENTRYPOINT ["segue"]
CMD ["--help"]
