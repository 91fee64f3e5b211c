"""The tiny GGUF file, for the tests of models."""

from tests.gguf_files import tiny_gguf as tiny_gguf
