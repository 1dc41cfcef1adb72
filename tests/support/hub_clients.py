"""How backends publish in Redis: the examples of the hub that this door takes the place of, as its guide has them.

Each ends with the same message for user123. PORT stands for their 6379.
"""

PASSWORD = "21042004"

USER = "user123"

MESSAGE = {
    "type": "notification",
    "payload": {"title": "New Order", "message": "You have a new order #12345"},
}

PYTHON = """
import redis
import json

def send_notification(user_id: str, title: str, message: str):
    # Connect to Redis
    r = redis.Redis(
        host='localhost',
        port=PORT,
        password='21042004',
        decode_responses=True
    )

    # Prepare message
    msg = {
        "type": "notification",
        "payload": {
            "title": title,
            "message": message
        }
    }

    # Publish to user's channel
    channel = f"user_noti:{user_id}"
    r.publish(channel, json.dumps(msg))

# Usage
send_notification("user123", "New Order", "You have a new order #12345")
"""

NODE = """
const redis = require('redis');

async function sendNotification(userId, title, message) {
    // Create Redis client
    const client = redis.createClient({
        socket: {host: 'localhost', port: PORT},
        password: '21042004'
    });

    await client.connect();

    // Prepare message
    const msg = {
        type: 'notification',
        payload: {
            title: title,
            message: message
        }
    };

    // Publish to user's channel
    const channel = `user_noti:${userId}`;
    await client.publish(channel, JSON.stringify(msg));

    await client.disconnect();
}

// Usage
sendNotification('user123', 'New Order', 'You have a new order #12345');
"""
"""The guide has host and port beside the password, where the client does not look for them since its version 4: it
works there because they are its defaults."""

PHP_PREDIS = """<?php
require 'vendor/autoload.php';

use Predis\\Client;

function sendNotification($userId, $title, $message) {
    // Connect to Redis
    $client = new Client([
        'scheme' => 'tcp',
        'host'   => 'localhost',
        'port'   => PORT,
        'password' => '21042004',
    ]);

    // Prepare message
    $msg = [
        'type' => 'notification',
        'payload' => [
            'title' => $title,
            'message' => $message
        ]
    ];

    // Publish to user's channel
    $channel = "user_noti:{$userId}";
    $client->publish($channel, json_encode($msg));
}

// Usage
sendNotification('user123', 'New Order', 'You have a new order #12345');
?>
"""

PHP_AUTOLOAD = "<?php require_once 'Predis/Autoloader.php'; Predis\\Autoloader::register();\n"
"""What composer would make: `vendor/autoload.php`, for the Predis of the system."""

PHP_PHPREDIS = """<?php
$client = new Redis();
$client->connect('localhost', PORT);
$client->auth('21042004');
$message = ['title' => 'New Order', 'message' => 'You have a new order #12345'];
$client->publish('user_noti:user123', json_encode(['type' => 'notification', 'payload' => $message]));
"""
"""With the other client that PHP backends use."""

GO = """
package main

import (
    "encoding/json"
    "github.com/gomodule/redigo/redis"
)

type NotificationPayload struct {
    Title   string `json:"title"`
    Message string `json:"message"`
}

type RedisMessage struct {
    Type    string      `json:"type"`
    Payload interface{} `json:"payload"`
}

func sendNotification(userID string, title, message string) error {
    // Create Redis client
    client, err := redis.Dial("tcp", "localhost:PORT", redis.DialPassword("21042004"), redis.DialDatabase(0))
    if err != nil {
        return err
    }
    defer client.Close()

    // Prepare message
    msg := RedisMessage{
        Type: "notification",
        Payload: NotificationPayload{
            Title:   title,
            Message: message,
        },
    }

    // Marshal to JSON
    data, err := json.Marshal(msg)
    if err != nil {
        return err
    }

    // Publish to user's channel
    channel := "user_noti:" + userID
    _, err = client.Do("PUBLISH", channel, data)
    return err
}

// Usage
func main() {
    err := sendNotification("user123", "New Order", "You have a new order #12345")
    if err != nil {
        panic(err)
    }
}
"""
"""With redigo instead of the go-redis of the guide, which Debian does not have in that version; the command is the
same."""
