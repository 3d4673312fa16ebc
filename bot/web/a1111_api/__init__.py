"""AUTOMATIC1111's API under `/sdapi/v1/`, over the services: programs that ask its web UI for pictures ask Darkroom.

`names` and `picture_options` map its names and fields to ours, `result_fields` maps results back; these are pure.
"""
