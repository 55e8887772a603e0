"""The components that protloom ships, each registered like a third party's."""
