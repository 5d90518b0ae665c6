"""The serving image: Dockerfile (pure), build folder, the BuildKit command line, and what is in the result."""
