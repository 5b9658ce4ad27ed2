"""What readers see: a generation that is right takes the place of another, and is compared with its snapshot.

Here belongs each transaction under whose lock readers could wait, kept to some milliseconds, and what is checked before
it. How the rows came into the table belongs to `loading`.
"""
