# docker build -t aid . && docker run --name aid aid && docker cp aid:/aid/output/quickstart/report .
FROM python:3.11-slim
RUN apt-get update && apt-get install --yes --no-install-recommends make && rm -rf /var/lib/apt/lists/*
WORKDIR /aid
COPY . .
RUN make install
CMD ["make", "demo"]
