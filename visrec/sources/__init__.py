"""Tables and pictures as users have them: formats, which rows count, items and users."""
