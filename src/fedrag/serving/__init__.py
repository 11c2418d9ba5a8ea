"""A system for others to ask over a network: OpenAI-compatible HTTP, and MCP.

`fedrag.serving.served.Served` is the system behind both: it says how many are answered at once. Nothing else of the
package imports these, except the command `fedrag serve`.
"""
