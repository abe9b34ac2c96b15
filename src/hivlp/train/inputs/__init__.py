"""What a training step is fed: views of pictures, tokens of captions, features of frozen towers."""
