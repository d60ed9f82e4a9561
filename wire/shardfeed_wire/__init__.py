"""What both sides of the network agree on: the codec, the messages, the endpoints and the transports."""
