"""LoRAs: files, compatibility, networks with LoRAs applied."""
