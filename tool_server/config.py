"""Which tools a run offers, and the limits of each."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from tool_server.registry import KINDS


class ToolConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    deadline_s: float = Field(default=10.0, gt=0, description="seconds one call may run; waiting for a free slot does not count")
    concurrency: int = Field(default=8, ge=1, description="calls of this tool that run at once on a server")
    options: dict[str, Any] = Field(default_factory=dict, description="the tool's own settings")


class ToolServerConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    tools: dict[str, ToolConfig] = Field(
        default_factory=lambda: {"image_zoom_in": ToolConfig()}, description="name of the tool -> its limits, in the order of the prompt"
    )

    @field_validator("tools")
    @classmethod
    def _known(cls, tools: dict[str, ToolConfig]) -> dict[str, ToolConfig]:
        for name in tools:
            if name not in KINDS:
                raise ValueError(f"no tool named {name!r}; there are: {', '.join(KINDS)}")
        return tools

    @model_validator(mode="after")
    def _options_fit(self) -> ToolServerConfig:
        for name, tool in self.tools.items():
            KINDS[name].options.model_validate(tool.options)
        return self
