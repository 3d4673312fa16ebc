"""What a job looks like in Discord: card, buttons, pictures, notices."""
