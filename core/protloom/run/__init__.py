"""The folder of a training run: who writes to it, what it was trained on, its log, what may change when it goes on."""
