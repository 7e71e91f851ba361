"""Training: a resumable loop, and what ESC-Net and its small foundations train on."""
