"""The HTTP front end of serving: an OpenAI-compatible API over the engine of the native core.

The way of a request: `app` (routes) -> `schema` (what was asked) -> `prompt` (text to ids) -> `hub` (the engine) ->
`choice` (ids to text, stop strings) -> `chat` or `completions` (the answer) -> `sse`.
"""
