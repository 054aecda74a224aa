"""Where language models come from: services, the embedded server, local models, the target."""
