# harp-server in a container, built from this folder with the steps of ./run:
#
#   docker build -t harp-server .
#   docker run --rm -p 127.0.0.1:8080:8080 -v "$PWD/models:/models:ro" -v "$PWD/api-keys:/run/secrets/api-keys:ro" \
#       harp-server -m /models/model.gguf
#
# Safe by default: published only on the loopback device, requires an API key (one per line), no root, writes nothing.
# The program is built for this machine's CPU; for other machines: --build-arg CMAKE_ARGS=-DGGML_NATIVE=OFF
FROM debian:bookworm-slim AS build
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
WORKDIR /src
COPY scripts scripts
RUN source scripts/setup.sh && ensure_packages "$run_packages" "$optional_packages" && fetch llama.cpp
COPY . .
ARG CMAKE_ARGS=
RUN cmake --preset release -DHARP_BUILD_TESTS=OFF -DHARP_BUILD_BENCH=OFF -DHARP_SANITIZER_TESTS=OFF \
        -DCMAKE_INSTALL_PREFIX=/opt/harp $CMAKE_ARGS \
    && cmake --build build/release --target harp_cli harp_server \
    && cmake --install build/release --strip

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 libhwy1 libfmt9 libzip4 libssl3 curl ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --no-create-home harp
COPY --from=build /opt/harp/bin /opt/harp/bin
COPY --from=build /opt/harp/lib /opt/harp/lib
USER harp
# all interfaces inside the container, otherwise nothing could be published
ENV LLAMA_ARG_HOST=0.0.0.0 LLAMA_ARG_PORT=8080 LLAMA_ARG_API_KEY_FILE=/run/secrets/api-keys
EXPOSE 8080
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s CMD curl -fsS http://127.0.0.1:8080/health
ENTRYPOINT ["/opt/harp/bin/harp-server"]
