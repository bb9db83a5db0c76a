"""The web page. `serve` starts it and `page` lays it out; only `layout` and `page` use Gradio."""
