"""The web page: `serve` starts it, `page` lays it out, the rest knows nothing of Gradio."""
